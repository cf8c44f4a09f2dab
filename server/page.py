"""The page behind the link of a notice: how a person decides. It knows nothing, asks nothing and decides nothing.

It is the same for every id that could be one, so that nobody learns from it which there are.
"""

import base64
import hashlib
import re

APPROVAL_PATH = re.compile(r"/approvals/apr_[a-z0-9]{16}")

_STYLE = """
:root { color-scheme: light dark; }
body { font: 1.05rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; line-height: 1.25; }
code { font: 0.95em ui-monospace, monospace; }
pre { padding: 0.8rem 1rem; border: 1px solid; border-radius: 0.4rem; overflow-x: auto; }
p.small { font-size: 0.9rem; opacity: 0.8; }
"""

PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>Deciding about an agent's call - Keyleash</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Deciding about an agent's call</h1>
<p>You cannot decide here. Whoever may decide does so at a terminal of the machine on which Keyleash runs, signed in
as themselves:</p>
<pre><code>keyleash approvals show ID</code></pre>
<p>shows exactly what would be sent, and whose agreement it needs. In place of <code>ID</code> write the last part of
this page's address; it begins with <code>apr_</code>. To see everything that waits for you, and to decide it there:</p>
<pre><code>keyleash approvals watch</code></pre>
<p>Do not decide anything that you have not read there, whoever asks you to.</p>
<p class="small">This page is the same for every address of its kind. It does not say whether there is such a call.</p>
</main>
</body>
</html>
""".encode()

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-type", b"text/html; charset=utf-8"),
    (
        b"content-security-policy",
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; sandbox".encode(),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
