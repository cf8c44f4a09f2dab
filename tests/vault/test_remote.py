import pytest

from vault import CannotOpen, LocalRootKey, RootKeyProblem
from vault.remote import prove, refuse_in_clear

LOCAL = LocalRootKey(b"k" * 32)


class Odd:
    """A root key that does as it is told by the test."""

    provider, location, remote = "odd", "here", True

    def __init__(self, unwrap) -> None:
        self._unwrap = unwrap

    def wrap(self, key, *, context):
        return LOCAL.wrap(key, context=context)

    def unwrap(self, blob, *, context):
        return self._unwrap(blob, context)


def test_a_key_that_binds_what_it_wraps_is_proven():
    prove(LOCAL)


def test_a_key_that_ignores_the_context_is_found_out():
    ignoring = Odd(lambda blob, context: LOCAL.unwrap(blob, context=("root-proof", "one")))
    with pytest.raises(RootKeyProblem, match=r"odd \(here\) unwraps for one purpose .* Vault 1\.13 or newer"):
        prove(ignoring)


def test_a_key_that_gives_back_something_else_or_nothing_is_found_out():
    def refusing(blob, context):
        raise CannotOpen

    for unwrap in (lambda blob, context: b"x" * 32, refusing):
        with pytest.raises(RootKeyProblem, match="does not unwrap what it has just wrapped") as caught:
            prove(Odd(unwrap))
        assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "url",
    [
        "https://kms.eu-west-1.amazonaws.com",
        "https://bao.example.com:8200",
        "http://127.0.0.1:8200",
        "http://127.8.9.1",
        "http://localhost:8100",
        "http://[::1]:8200",
    ],
)
def test_tls_and_this_machine_are_good_enough(url: str):
    refuse_in_clear(url, mend="Mend it.")


@pytest.mark.parametrize(
    "url",
    [
        "http://bao.example.com:8200",
        "http://10.0.0.7",
        "http://0.0.0.0:8200",
        "http://localhost.example.com",
        "http://127.0.0.1.example.com",
        "http://[::2]:8200",
        "http://",
        "ftp://127.0.0.1",
        "bao.example.com",
        "",
    ],
)
def test_a_network_in_clear_is_refused_with_the_mend(url: str):
    with pytest.raises(RootKeyProblem, match=r"in clear\. Mend it\."):
        refuse_in_clear(url, mend="Mend it.")
