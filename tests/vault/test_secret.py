import copy
import dataclasses
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticSerializationError

from vault import LocalRootKey, Secret, Vault, VaultError
from vault.seal import Key

CANARY = "sk_live_canary_7f3a"


@pytest.fixture
def secret() -> Secret:
    return Secret({"secret": CANARY, "account": "acct_9x"})


def test_a_field_is_had_by_asking_for_it_by_name(secret: Secret):
    assert secret.reveal() == CANARY
    assert secret.reveal("account") == "acct_9x"
    assert secret.fields == ("secret", "account")


@pytest.mark.parametrize("value", ["", "päss wörd ☃", "\x00", "\ud800 lone"])
def test_any_text_comes_back_as_it_was(value: str):
    assert Secret({"secret": value}).reveal() == value


def test_a_missing_field_is_an_error_that_names_the_fields_and_no_content(secret: Secret, locals_in):
    with pytest.raises(VaultError, match=r"no field 'token' \(it has secret, account\)") as caught:
        secret.reveal("token")
    assert CANARY not in locals_in(caught.value)


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        ascii,
        lambda secret: f"{secret}",
        lambda secret: f"{secret!r:>80}",
        lambda secret: f"{secret:>40}",
        lambda secret: "%s %r" % (secret, secret),  # noqa: UP031 -- this form is the one under test
        lambda secret: str([secret]) + str({"a": secret}),
        lambda secret: json.dumps(secret, default=str),
        lambda secret: str([getattr(secret, name) for name in dir(secret)]),
        lambda secret: logging.makeLogRecord({"msg": "%s", "args": (secret,)}).getMessage(),
    ],
)
def test_no_way_of_printing_it_shows_content(secret: Secret, show: Callable[[Any], str]):
    shown = show(secret)
    assert "canary" not in shown
    assert "acct_9x" not in shown


class Model(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    secret: Secret


@dataclasses.dataclass
class Holder:
    secret: Secret


@pytest.mark.parametrize("make", [lambda: Secret({"secret": CANARY}), lambda: Key(b"k" * 32), lambda: Vault(None)])
@pytest.mark.parametrize(
    "take",
    [
        *[lambda opaque, p=p: pickle.dumps(opaque, protocol=p) for p in range(pickle.HIGHEST_PROTOCOL + 1)],
        copy.copy,
        copy.deepcopy,
        lambda opaque: dataclasses.asdict(Holder(opaque)),
        lambda opaque: opaque.__reduce__(),
        lambda opaque: opaque.__getstate__(),
        json.dumps,
        lambda opaque: json.dumps(opaque, default=vars),
        vars,
        lambda opaque: opaque.__dict__,
        iter,
        list,
        dict,
        len,
        lambda opaque: opaque[0],
    ],
)
def test_it_cannot_be_pickled_copied_dumped_or_iterated(make: Callable[[], Any], take: Callable[[Any], Any]):
    with pytest.raises((TypeError, AttributeError)) as caught:
        take(make())
    assert "canary" not in str(caught.value)


def test_a_pydantic_model_that_holds_one_cannot_be_dumped(secret: Secret):
    model = Model(secret=secret)
    with pytest.raises(PydanticSerializationError) as caught:
        model.model_dump_json()
    assert CANARY not in str(caught.value) + repr(model)


def test_equal_content_is_not_told_by_comparing(secret: Secret):
    assert secret != Secret({"secret": CANARY, "account": "acct_9x"})
    assert secret != CANARY


def test_a_traceback_with_locals_shows_no_content(secret: Secret):
    def use(credential: Secret) -> None:
        raise RuntimeError(f"failed with {credential}")

    try:
        use(secret)
    except RuntimeError as error:
        captured = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert "credential = <Secret>" in "".join(captured.format())
    assert CANARY not in "".join(captured.format())


def test_wiped_it_reveals_nothing_and_its_memory_is_overwritten(secret: Secret):
    held = secret._kept()["secret"]
    secret.wipe()
    secret.wipe()
    assert held == bytes(len(CANARY))
    with pytest.raises(VaultError, match="wiped when its call ended"):
        secret.reveal()


def test_leaving_the_call_wipes_it_also_when_the_call_fails(secret: Secret):
    with pytest.raises(RuntimeError), secret as lent:
        assert lent.reveal() == CANARY
        raise RuntimeError
    with pytest.raises(VaultError, match="wiped"):
        secret.reveal()


def test_a_root_key_shows_where_it_is_and_not_what_it_is():
    root = LocalRootKey(b"k" * 32, provider="file", location="/somewhere")
    shown = repr(root) + str([getattr(root, name) for name in dir(root)])
    assert "kkkk" not in shown
    assert "/somewhere" in shown
    with pytest.raises(TypeError):
        pickle.dumps(root)
