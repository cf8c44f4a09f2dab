"""Shopify's schema of one API version, as the npm package `@shopify/dev-mcp`, Shopify's own, carries it."""

import gzip
import json
import re

import graphql

from connectors.definition import Connector
from tests.real.fetching import Cache
from tests.real.report import CannotRun

VERSION = "1.16.0"


def read(cache: Cache, connector: Connector) -> graphql.GraphQLSchema:
    """The schema of the version in the connector's base URL. Raises CannotRun where the package has none."""
    version = re.search(r"[0-9]{4}-[0-9]{2}$", connector.base_url)
    folder = cache.tarball("@shopify/dev-mcp", VERSION) / "dist" / "data"
    file = folder / f"admin_{version[0] if version else 'unknown'}.json.gz"
    if not file.is_file():
        raise CannotRun(f"{VERSION} of the package has no {file.name}")
    # Some fields are deprecated in a type and not in its interface, which a strict reader refuses.
    return graphql.build_client_schema(json.loads(gzip.decompress(file.read_bytes()))["data"], assume_valid=True)
