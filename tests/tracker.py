"""A small issue tracker that speaks GraphQL: ours, on loopback, and no vendor's; graphql-core carries the calls out.

It has the part of Linear's interface that a few of its tools use, so that a document and its variables meet an engine
that really reads them, and what was done can be looked at.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import graphql

from tests.upstream import Answer, Received

SCHEMA = graphql.build_schema("""
    type Query { viewer: User! organization: Organization! issue(id: String!): Issue! }
    type Mutation {
      issueCreate(input: IssueCreateInput!): IssuePayload!
      issueDelete(id: String!, permanentlyDelete: Boolean): Payload!
    }
    scalar TimelessDate
    input IssueCreateInput {
      teamId: String! title: String description: String assigneeId: String stateId: String priority: Int
      labelIds: [String!] projectId: String parentId: String estimate: Int dueDate: TimelessDate
    }
    type User { id: ID! name: String! displayName: String! }
    type Organization { name: String! urlKey: String! }
    type Issue { id: ID! identifier: String! url: String! title: String! }
    type IssuePayload { success: Boolean! issue: Issue }
    type Payload { success: Boolean! }
""")


@dataclass
class Tracker:
    """`Upstream.answer` for tests: `upstream.answer = Tracker(key).answer`; then `issues` and `deleted` to look at."""

    key: str
    issues: list[dict[str, Any]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)

    def answer(self, request: Received) -> Answer:
        """Carry out one request; the key stands bare in Authorization."""
        if request.headers.get("authorization") != self.key:
            errors = [{"message": "Who are you?", "extensions": {"code": "AUTHENTICATION_ERROR"}}]
            return Answer({"errors": errors}, status=400)
        asked = json.loads(request.body)
        root = {
            "viewer": {"id": "u1", "name": "Ann", "displayName": "ann"},
            "organization": {"name": "Acme", "urlKey": "acme"},
            "issueCreate": self._create,
            "issueDelete": self._delete,
        }
        result = graphql.graphql_sync(
            SCHEMA, asked["query"], root, variable_values=asked["variables"], operation_name=asked["operationName"]
        )
        return Answer(result.formatted)

    def _create(self, _info: Any, *, input: dict[str, Any]) -> dict[str, Any]:  # noqa: A002 - the vendor's word
        if input["teamId"] == "nowhere":
            raise graphql.GraphQLError("Entity not found: Team", extensions={"code": "INPUT_ERROR"})
        self.issues.append(input)
        number = len(self.issues)
        made = {"id": f"i{number}", "identifier": f"ENG-{number}", "url": "https://x/1", "title": input["title"]}
        return {"success": True, "issue": made}

    def _delete(self, _info: Any, **given: Any) -> dict[str, Any]:
        self.deleted.append(given["id"])
        return {"success": True}
