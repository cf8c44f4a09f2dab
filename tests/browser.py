"""A browser without windows: `python tests/browser.py URL` opens it, keeps cookies, follows redirects, prints the page."""

import http.client
import sys
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit


@dataclass
class Browser:
    """Keeps its cookies by host and port; the pages that it saw stand in `seen`, with their addresses."""

    cookies: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, int, dict[str, str], str]] = field(default_factory=list)

    def open(self, url: str, *, most: int = 5) -> str:
        """The page that an address leads to in the end."""
        for _ in range(most):
            status, headers, page = self.get(url)
            if status != 302:
                return page
            url = urljoin(url, headers["location"])
        raise AssertionError("redirects without end")

    def get(self, url: str, **headers: str) -> tuple[int, dict[str, str], str]:
        """One request, with nothing followed."""
        parts = urlsplit(url)
        assert parts.hostname
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        kept = self.cookies.get(parts.netloc)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request("GET", target, headers={**({"Cookie": kept} if kept else {}), **headers})
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        page = answer.read().decode()
        connection.close()
        if "set-cookie" in found:
            self.cookies[parts.netloc] = found["set-cookie"].partition(";")[0]
        self.seen.append((url, answer.status, found, page))
        return answer.status, found, page


if __name__ == "__main__":
    print(Browser().open(sys.argv[1]))
