"""The profile of a call says where its CPU goes, by parts that exist."""

import sys
from pathlib import Path

import pytest

from tests.bench.contest import ROOT
from tests.bench.profile import PARTS, PROTOCOL, REST, Profile, profile


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="CPU is read as Linux has it")
def test_a_server_under_load_is_seen_in_all_parts_of_a_call(tmp_path: Path):
    found = profile(tmp_path, callers=5, seconds=2.0)
    assert found.cpu_us > 0
    shares = found.shares()
    assert abs(sum(shares.values()) - 1) < 1e-6
    assert shares[PROTOCOL] > 0
    assert shares["the record: two entries, usage, the call kept for replay"] > 0
    assert shares["the call upstream: request, authentication, transport"] > 0


def test_a_file_counts_for_its_own_part_and_for_the_rest_where_it_has_none():
    found = Profile({"server/audit/chain.py": 3, "vault/seal.py": 1, "server/call.py": 4}, 1.0)
    shares = found.shares()
    assert shares[REST] == 0.5
    assert shares["the vault"] == 0.125
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_every_part_names_files_that_there_are():
    for files in PARTS.values():
        for file in files:
            assert (ROOT / file).exists(), file
