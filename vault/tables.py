"""The vault's tables: the schema that migrations are made from. Imported by migrations and tests only.

Times are milliseconds since the epoch. Every column of bytes is sealed or wrapped; no key and no secret is stored bare.
"""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, ForeignKeyConstraint
from sqlmodel import Field, SQLModel


class VaultRoot(SQLModel, table=True):
    """A generation of the root key: where it is kept, a value that only it opens, the installation's own key under it.

    Without `check_blob` the generation is being prepared and wraps nothing yet. The highest that has one wraps what is
    new; `retired_at` says since when nothing is under an earlier one.
    """

    __tablename__: ClassVar[Any] = "vault_root"

    id: int = Field(primary_key=True)
    provider: str
    location: str
    check_blob: bytes | None = None
    installation_key: bytes | None = None
    created_at: int = Field(sa_type=BigInteger)
    retired_at: int | None = Field(default=None, sa_type=BigInteger)


class OrgKey(SQLModel, table=True):
    """An org's key, wrapped by generation `root` of the root key. The highest version seals what is new."""

    __tablename__: ClassVar[Any] = "vault_org_key"

    org: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    wrapped: bytes
    created_at: int = Field(sa_type=BigInteger)
    root: int = Field(default=1, sa_column_kwargs={"server_default": "1"})


class Derived(SQLModel, table=True):
    """A derived key that outlives the org key that it came from: kept when that is rotated, sealed under the newer.

    The row whose purpose is empty lists which were kept, so that one that is taken away is missed.
    """

    __tablename__: ClassVar[Any] = "vault_derived"
    __table_args__ = (ForeignKeyConstraint(["org", "key_version"], ["vault_org_key.org", "vault_org_key.version"]),)

    org: str = Field(primary_key=True)
    purpose: str = Field(primary_key=True)
    key_version: int
    sealed: bytes


class Credential(SQLModel, table=True):
    """One version of a connection's credential: its data key, wrapped by version `key_version` of the org's key."""

    __tablename__: ClassVar[Any] = "vault_credential"
    __table_args__ = (ForeignKeyConstraint(["org", "key_version"], ["vault_org_key.org", "vault_org_key.version"]),)

    org: str = Field(primary_key=True)
    connection: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    key_id: str
    key_version: int
    data_key: bytes
    origin: str
    scheme: str
    created_at: int = Field(sa_type=BigInteger)


class VaultField(SQLModel, table=True):
    """One field of one credential version, sealed by its data key."""

    __tablename__: ClassVar[Any] = "vault_field"
    __table_args__ = (
        ForeignKeyConstraint(
            ["org", "connection", "version"],
            ["vault_credential.org", "vault_credential.connection", "vault_credential.version"],
        ),
    )

    org: str = Field(primary_key=True)
    connection: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    field: str = Field(primary_key=True)
    sealed: bytes
