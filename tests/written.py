"""What is written for users: the README, then the files of docs/ in the order of their names."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def written() -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in FILES)
