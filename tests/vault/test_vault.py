import subprocess
import sys
from pathlib import Path

import vault


def test_all_names_exactly_what_the_room_offers():
    offered = {name for name in vars(vault) if not name.startswith("_")}
    modules = {path.stem for path in Path(vault.__file__).parent.glob("*.py")}
    assert set(vault.__all__) == offered - modules | {"seal"}
    assert sorted(vault.__all__) == sorted(set(vault.__all__))


def test_every_refusal_of_the_room_is_a_vault_error():
    for name in ("CannotOpen", "CannotResolve", "KeysUnavailable", "RootKeyProblem", "Sealed", "WrongRootKey"):
        assert issubclass(getattr(vault, name), vault.VaultError)


def test_importing_the_room_imports_no_heavy_library():
    heavy = ("sqlmodel", "sqlalchemy", "alembic", "typer", "rich", "pydantic", "keyring", "boto3", "botocore", "httpx2")
    program = f"import sys, vault; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
