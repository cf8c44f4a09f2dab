from pathlib import Path

import pytest

from vault import PROVIDERS, RootKeyProblem, root_key_spec
from vault.keychain import KeychainRef
from vault.keyfile import FileRef


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_place_is_described_by_a_spec_that_names_it_again(provider: str, tmp_path: Path):
    ref = root_key_spec(provider, tmp_path)
    assert ref.describe() == {"provider": provider, "location": ref.location}
    assert ref.location
    assert root_key_spec(f"{provider}:{ref.location}", tmp_path / "elsewhere") == ref


@pytest.mark.parametrize("provider", PROVIDERS)
def test_two_homes_never_share_a_place(provider: str, tmp_path: Path):
    assert root_key_spec(provider, tmp_path / "a").location != root_key_spec(provider, tmp_path / "b").location


@pytest.mark.parametrize("provider", PROVIDERS)
def test_naming_a_place_makes_nothing(provider: str, tmp_path: Path):
    root_key_spec(provider, tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_specs_name_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert root_key_spec("file", tmp_path) == FileRef(tmp_path / "keys" / "root.key")
    assert root_key_spec("file:/etc/k:1", tmp_path) == FileRef(Path("/etc/k:1"))
    assert root_key_spec("file:k", tmp_path) == FileRef(tmp_path / "k")
    assert root_key_spec("file:~/k", tmp_path) == FileRef(tmp_path / "me" / "k")
    assert root_key_spec("keychain:mine", tmp_path) == KeychainRef("mine")


@pytest.mark.parametrize("spec", ["", "files", "File", "kms:alias", "/path", " file"])
def test_an_unknown_provider_is_refused_with_the_choices(spec: str, tmp_path: Path):
    with pytest.raises(RootKeyProblem, match="keychain, file"):
        root_key_spec(spec, tmp_path)


@pytest.mark.parametrize("spec", ["file:", "keychain:"])
def test_a_spec_that_ends_at_its_colon_is_refused(spec: str, tmp_path: Path):
    with pytest.raises(RootKeyProblem, match="Nothing follows the colon"):
        root_key_spec(spec, tmp_path)
