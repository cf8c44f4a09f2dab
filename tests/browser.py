"""A browser without windows: `python tests/browser.py URL` keeps cookies, follows redirects, and prints the page."""

import http.client
import sys
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit


@dataclass
class Browser:
    """Keeps its cookies by host, whatever the port, as browsers do; the pages that it saw stand in `seen`."""

    cookies: dict[str, dict[str, str]] = field(default_factory=dict)
    seen: list[tuple[str, int, dict[str, str], str]] = field(default_factory=list)

    def open(self, url: str, *, most: int = 12) -> str:
        """The page that an address leads to in the end."""
        for _ in range(most):
            status, headers, page = self.get(url)
            if status not in (302, 303):
                return page
            url = urljoin(url, headers["location"])
        raise AssertionError("redirects without end")

    def get(self, url: str, **headers: str) -> tuple[int, dict[str, str], str]:
        """One request, with nothing followed."""
        parts = urlsplit(url)
        assert parts.hostname
        kept = self.cookies.setdefault(parts.hostname, {})
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        ours = {"Cookie": "; ".join(f"{name}={value}" for name, value in kept.items())} if kept else {}
        connection.request("GET", target, headers={**ours, **headers})
        answer = connection.getresponse()
        given = answer.getheaders()
        page = answer.read().decode()
        connection.close()
        for name, value in given:
            if name.lower() == "set-cookie":
                cookie, _, content = value.partition(";")[0].partition("=")
                kept[cookie] = content
        found = {name.lower(): value for name, value in given}
        self.seen.append((url, answer.status, found, page))
        return answer.status, found, page


if __name__ == "__main__":
    print(Browser().open(sys.argv[1]))
