"""GitHub's connector against `emulate`: every shipped tool, the writes with a person who approves."""

from collections.abc import Mapping
from typing import Any

from tests.real.emulators import ask, emulate, watched
from tests.real.fetching import Cache
from tests.real.governed import Agent, agent, all_called, kept, org
from tests.real.report import CannotRun, Report, expect

KEY = "github_pat_canary8Jq2vXw0Zr5TnYb7LdKe"
REPO = {"owner": "octocat", "repo": "hello-world"}
AT = "/repos/octocat/hello-world"
SEED: Mapping[str, Any] = {
    "tokens": {KEY: {"login": "octocat", "scopes": ["repo", "user"]}},
    "github": {
        "users": [{"login": "octocat", "name": "The Octocat"}],
        "repos": [{"owner": "octocat", "name": "hello-world", "auto_init": True}],
    },
}


async def check(report: Report, cache: Cache) -> None:
    """Files, issues, pull requests, workflows."""
    with emulate(cache, "github", SEED) as url, watched(url) as upstream, org() as made:
        blob = _prepare(url)
        with report.line("connects, with the token tried"):
            connected = made.connect("github", upstream.url, KEY)
            expect(connected["account"] == "octocat", f"the account is called {connected['account']}")
        with report.line("refuses to connect a token that GitHub refuses"):
            ran = made.line.alone(
                *("connect", "github", "--name", "other", "--secret-stdin", "--base-url", upstream.url),
                *("--allow-private", "127.0.0.1/32"),
                stdin=b"github_pat_another",
            )
            if ran.code == 0:
                raise CannotRun("emulate takes any token")
            expect("Nothing was stored" in ran.err, ran.err)
        upstream.requests.clear()
        with made.serving() as address:
            async with agent(address, made.token, "github", upstream) as at_work:
                await _files(report, at_work)
                await _issues(report, at_work)
                await _deletes(report, at_work, blob)
                await _pull_requests(report, at_work)
                with report.line("runs a workflow"):
                    run = {**REPO, "workflow_id": "deploy.yml", "ref": "main", "inputs": {"where": "test"}}
                    await at_work.if_there("emulate", "run_workflow", run)
                with report.line("every shipped tool was called"):
                    all_called(at_work)
            with report.line("the token is in every request and nowhere else; the record verifies"):
                kept(made, at_work, KEY)


def _prepare(url: str) -> str:
    """A branch with a change and a file in a folder; returns the hash of a file's content."""
    head = ask(url, "GET", f"{AT}/git/ref/heads/main", KEY)["object"]["sha"]
    ask(url, "POST", f"{AT}/git/refs", KEY, {"ref": "refs/heads/change", "sha": head})
    change = {"message": "A change", "content": "SGVsbG8K", "branch": "change"}
    ask(url, "PUT", f"{AT}/contents/docs/hello.md", KEY, change)
    old = {"message": "Something old", "content": "eyJhIjogMX0K", "branch": "main"}
    return ask(url, "PUT", f"{AT}/contents/docs/old.json", KEY, old)["content"]["sha"]


async def _files(report: Report, at_work: Agent) -> None:
    with report.line("reads its user, repositories and commits"):
        expect((await at_work.get("get_me"))["login"] == "octocat", "it is someone else")
        found = (await at_work.get("search_repositories", {"q": "hello", "per_page": 5}))["repositories"]
        expect([each["name"] for each in found] == ["octocat/hello-world"], str(found))
        commits = (await at_work.get("list_commits", {**REPO, "sha": "main"}))["items"]
        expect([each["message"] for each in commits] == ["Something old", "Initial commit"], str(commits))
    with report.line("lists the files of a branch"):
        files = (await at_work.get("list_files", {**REPO, "ref": "main", "recursive": "1"}))["files"]
        expect({"README.md", "docs/old.json"} <= {each["path"] for each in files}, str(files))
    with report.line("reads a file of text on a branch"):
        read = await at_work.get("read_file", {**REPO, "path": "docs/hello.md", "ref": "change"})
        expect(read.get("text") == "Hello\n", str(read))
        target = at_work.upstream.requests[-1].target
        expect(target == f"{AT}/contents/docs/hello.md?ref=change", f"asked for {target}")
    with report.line("reads a file of JSON as the text that it is"):
        read = await at_work.get("read_file", {**REPO, "path": "docs/old.json"})
        expect(read.get("text") == '{"a": 1}\n', f"it came as {read}")


async def _issues(report: Report, at_work: Agent) -> None:
    number = 0
    with report.line("an issue that is not approved is not opened"):
        before, at_work.person.decision = at_work.sent, None
        await at_work.refused("create_issue", {**REPO, "title": "No"})
        at_work.person.decision = "approve"
        expect(at_work.sent == before, "something was sent")
    with report.line("opens an issue, comments on it, closes it"):
        opened = await at_work.get("create_issue", {**REPO, "title": "Broken", "body": "It **is**."})
        number = opened["number"]
        await at_work.get("comment_on_issue", {**REPO, "issue_number": number, "body": "Mended."})
        close = {**REPO, "issue_number": number, "state": "closed", "state_reason": "completed"}
        closed = await at_work.get("close_issue", close)
        expect((closed["state"], closed["state_reason"]) == ("closed", "completed"), str(closed))
    with report.line("lists, searches and reads issues and comments"):
        expect((await at_work.get("list_issues", REPO))["items"] == [], "a closed issue is listed as open")
        listed = (await at_work.get("list_issues", {**REPO, "state": "closed"}))["items"]
        expect([(each["number"], each["kind"]) for each in listed] == [(number, "issue")], str(listed))
        found = await at_work.get("search_issues", {"q": "repo:octocat/hello-world is:issue is:closed"})
        expect((found["total"], found["items"][0]["title"]) == (1, "Broken"), str(found))
        issue = await at_work.get("get_issue", {**REPO, "issue_number": number})
        expect((issue["body"], issue["comments"], issue["author"]) == ("It **is**.", 1, "octocat"), str(issue))
        comments = (await at_work.get("list_issue_comments", {**REPO, "issue_number": number}))["items"]
        expect([each["body"] for each in comments] == ["Mended."], str(comments))


async def _deletes(report: Report, at_work: Agent, blob: str) -> None:
    with report.line("deletes a file"):
        gone = {**REPO, "path": "docs/old.json", "message": "Not needed", "sha": blob}
        await at_work.get("delete_file", gone)
        said = await at_work.refused("read_file", {**REPO, "path": "docs/old.json"})
        expect("404" in said, said)


async def _pull_requests(report: Report, at_work: Agent) -> None:
    pull: dict[str, Any] = {}
    with report.line("opens a pull request, lists and reads it"):
        opened = await at_work.get("create_pull_request", {**REPO, "title": "Hello", "head": "change", "base": "main"})
        which = {**REPO, "pull_number": opened["number"]}
        pull = await at_work.get("get_pull_request", which)
        expect((pull["head"], pull["base"], pull["merged"]) == ("change", "main", False), str(pull))
        listed = (await at_work.get("list_pull_requests", {**REPO, "base": "main"}))["items"]
        expect([each["number"] for each in listed] == [opened["number"]], str(listed))
    with report.line("lists the files of a pull request"):
        files = (await at_work.get("list_pull_request_files", {**REPO, "pull_number": pull["number"]}))["items"]
        if not files:
            raise CannotRun("emulate makes up file names and does not look at the branches; it was asked, and has none")
    with report.line("merges exactly the head that was reviewed"):
        which = {**REPO, "pull_number": pull["number"]}
        said = await at_work.refused("merge_pull_request", {**which, "sha": "0" * 40})
        expect("Head sha is out of date" in said, said)
        merged = await at_work.get("merge_pull_request", {**which, "sha": pull["head_sha"], "merge_method": "squash"})
        expect(merged["merged"] is True and pull["head_sha"] in at_work.person.asked[-1], str(merged))
