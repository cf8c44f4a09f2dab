"""A document in a connector file is one operation that can be read in one piece; graphql-core is the second opinion."""

from collections.abc import Callable
from typing import Any

import graphql
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from connectors.errors import DefinitionError
from connectors.graphql import MAX_DEPTH, Document, read_document
from connectors.source import Spot


def read(text: str) -> Document:
    return read_document(Spot("shop.yaml", 1, text))


def refused(text: str) -> str:
    with pytest.raises(DefinitionError) as error:
        read(text)
    return str(error.value)


WHOLE = """\
# One order, and who is behind it.
query GetOrder($id: ID!, $lines: Int! = 20, $tags: [[String!]!], $kind: Kind = OPEN) {
  first: order(id: $id, where: {tags: $tags, kind: $kind, at: "a \\"#, b\\" \\u00e9", cost: -1.5e3}) {
    ...on Paid @include(if: true) { total }
    total, lines(first: $lines) { nodes { id, sku } } # of each, the number
  }
  shop { id }
}
"""


def test_a_document_is_read_whole() -> None:
    document = read(WHOLE)
    assert (document.operation.kind, document.operation.name) == ("query", "GetOrder")
    assert document.fields == ("order", "shop")
    assert document.operation.answers == {
        "first": {"total": {}, "lines": {"nodes": {"id": {}, "sku": {}}}},
        "shop": {"id": {}},
    }
    declared = {name: (str(each.type), each.default, each.line) for name, each in document.variables.items()}
    assert declared == {
        "id": ("ID!", False, 3),
        "lines": ("Int!", True, 3),
        "tags": ("[[String!]!]", False, 3),
        "kind": ("Kind", True, 3),
    }


def test_what_is_sent_is_one_line_of_ascii_that_means_the_same() -> None:
    sent = read(WHOLE).operation.document
    assert sent == (
        "query GetOrder($id: ID!, $lines: Int! = 20, $tags: [[String!]!], $kind: Kind = OPEN) { "
        'first: order(id: $id, where: {tags: $tags, kind: $kind, at: "a \\"#, b\\" \\u00e9", cost: -1.5e3}) { '
        "...on Paid @include(if: true) { total } total, lines(first: $lines) { nodes { id, sku } } } shop { id } }"
    )
    assert graphql.print_ast(graphql.parse(sent)) == graphql.print_ast(graphql.parse(WHOLE))


# What is wrong, and the line and a word of the message.
BROKEN = [
    ("", 1, "empty"),
    ("{ shop { id } }", 1, "no name"),
    ("query { shop { id } }", 1, "no name"),
    ("query ($a: Int) { shop(a: $a) }", 1, "no name"),
    ("subscription Watch { orders { id } }", 1, "no single answer"),
    ("query A { a }\nquery B { b }", 3, "two operations"),
    ("query A { a }\n\nmutation B { b }", 4, "two operations"),
    ("query A { a }\n{ b }", 3, "two operations"),
    ("query A { a }\nsubscription B { b }", 3, "two operations"),
    ("query A { a ...F }\nfragment F on X { b }", 2, "named fragments"),
    ("query A { a }\nfragment F on X { b }", 3, "named fragments"),
    ("fragment F on X { b }\nquery A { a }", 2, "named fragments"),
    ("type A { a: Int }", 1, "begins with"),
    ("mutation A { a { id }\nb { id } }", 2, "one field"),
    ("mutation A { a: one { id } ... on Mutation { b: two { id } } }", 1, "one field"),
    ("query A($a: Int) { a }", 1, "never used"),
    ("query A(\n$a: Int,\n$b: Int) { x(a: $a) }", 4, "never used"),
    ("query A { a(b:\n$b) }", 3, "not declared"),
    ("query A($a: Int = $b, $b: Int) { x(a: $a, b: $b) }", 1, "a constant"),
    ("query A($a: Int, $a: Int) { x(a: $a) }", 1, "declared twice"),
    ("query A { a(b: $b }", 1, "a name"),
    ("query A { a(b: 1", 1, "document ends"),
    ("query A { a {\n b\n", 4, "document ends"),
    ("query A { a } }", 1, "the end"),
    ("query A { }", 1, "a field"),
    ("query A { a { } }", 1, "a field"),
    ("query A { a(b: ) }", 1, "a value"),
    ("query A { a(b: [1 2) }", 1, "a value"),
    ("query A { a(: 1) }", 1, "a name"),
    ("query A($a: [Int) { a(b: $a) }", 1, "`]`"),
    ("query A($a Int) { a(b: $a) }", 1, "`:`"),
    ('query A { a(b: """x""") }', 1, "block string"),
    ('query A {\na(b: "x\ny") }', 3, "text in quotes"),
    ('query A { a(b: "\\q") }', 1, "text in quotes"),
    ('query A { a(b: "é") }', 1, "text in quotes"),
    ("query A { a(b: 01) }", 1, "cannot hold '0'"),
    ("query A { a(b: 1x) }", 1, "cannot hold '1'"),
    ("query A { a; b }", 1, "cannot hold ';'"),
    ("query A { ä }", 1, "cannot hold '\\xe4'"),
    ("query A {\n a % }", 3, "cannot hold '%'"),
    ("query A { a\0 }", 1, "cannot hold '\\x00'"),
    ("query A { " + "a { " * (MAX_DEPTH + 1) + "b" + " }" * (MAX_DEPTH + 1) + " }", 1, "nested deeper"),
    ("query A { a(b: " + "[" * 5000 + "]" * 5000 + ") }", 1, "nested deeper"),
    ("query A($a: " + "[" * 5000 + "Int" + "]" * 5000 + ") { b(a: $a) }", 1, "nested deeper"),
]


@pytest.mark.parametrize(("text", "line", "says"), BROKEN)
def test_what_is_not_one_plain_operation_is_refused_with_its_line(text: str, line: int, says: str) -> None:
    said = refused(text)
    assert says in said
    assert said.startswith(f"shop.yaml:{line}: "), said


def test_a_block_of_yaml_begins_below_its_key() -> None:
    """A single line counts as the key's own; of a block, the first line stands below it."""
    assert refused("query A { a; }").startswith("shop.yaml:1: ")
    assert refused("query A {\n  a;\n}\n").startswith("shop.yaml:3: ")


def test_a_document_as_deep_as_may_be_is_read() -> None:
    assert read("query A { " + "a { " * MAX_DEPTH + "b" + " }" * MAX_DEPTH + " }").fields == ("a",)


# -- beside graphql-core

NAME = st.sampled_from(["a", "b", "Order", "_x1", "type", "fragment", "true1", "onX"])
GAP = st.sampled_from([" ", "\n", "\t", " , ", "\r\n", " # a } comment {\n", ",", "\ufeff "])


@st.composite
def constants(draw: st.DrawFn, depth: int = 2) -> str:
    leaf = st.sampled_from(["1", "-2", "1.5", "2e3", '"te,#xt"', '""', '"\\n\\u00e9"', "true", "null", "OPEN"])
    if depth == 0 or draw(st.booleans()):
        return draw(leaf)
    inner = draw(st.lists(constants(depth - 1), max_size=2))
    if draw(st.booleans()):
        return "[" + " ".join(inner) + "]"
    return "{" + draw(GAP).join(f"k{place}:{value}" for place, value in enumerate(inner)) + "}"


@st.composite
def types(draw: st.DrawFn, depth: int = 2) -> str:
    bang = draw(st.sampled_from(["", "!"]))
    if depth and draw(st.booleans()):
        return f"[{draw(types(depth - 1))}]{bang}"
    return draw(st.sampled_from(["ID", "String", "Money", "Int"])) + bang


@st.composite
def selections(draw: st.DrawFn, variables: list[str], depth: int = 2) -> str:
    gap = draw(GAP)
    parts: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        if depth and draw(st.integers(0, 4)) == 0:
            on = draw(st.sampled_from(["", "on Paid", "on\nOrder @skip(if: false)"]))
            parts.append(f"...{on}{draw(selections(variables, depth - 1))}")
            continue
        alias = draw(st.sampled_from(["", "z:", "y :"]))
        value = f"${variables.pop()}" if variables else draw(constants())
        arguments = draw(st.sampled_from(["", f"(k{gap}:{gap}{value})"])) if value[0] != "$" else f"(k:{value})"
        below = draw(selections(variables, depth - 1)) if depth and draw(st.booleans()) else ""
        parts.append(f"{alias}{draw(NAME)}{arguments}{draw(st.sampled_from(['', '@keep', '@d(n:1)']))}{below}")
    return "{" + gap.join(parts) + "}"


@st.composite
def documents(draw: st.DrawFn) -> str:
    names = draw(st.lists(st.sampled_from(["p", "q", "r"]), unique=True, max_size=3))
    declared: list[str] = []
    for name in names:
        default = draw(st.sampled_from(["", f"={draw(constants())}"]))
        declared.append(f"${name}:{draw(types())}{default}")
    unused = list(names)
    body = draw(selections(unused))
    assume(not unused)
    parentheses = f"({draw(GAP).join(declared)})" if declared else ""
    return f"{draw(GAP)}query {draw(NAME)}{parentheses}{draw(GAP)}{body}{draw(GAP)}"


def second_opinion(text: str) -> graphql.OperationDefinitionNode:
    (only,) = graphql.parse(text).definitions
    assert isinstance(only, graphql.OperationDefinitionNode)
    return only


@settings(max_examples=150, deadline=None)
@given(documents())
def test_what_graphql_core_reads_is_read_the_same(text: str) -> None:
    theirs, ours = second_opinion(text), read(text)
    assert ours.operation.name == (theirs.name and theirs.name.value)
    assert ours.operation.kind == theirs.operation.value
    found = [(each.variable.name.value, graphql.print_ast(each.type)) for each in theirs.variable_definitions or ()]
    assert [(name, str(each.type)) for name, each in ours.variables.items()] == found
    assert graphql.print_ast(second_opinion(ours.operation.document)) == graphql.print_ast(theirs)
    assert ours.operation.answers == answers(theirs.selection_set)
    assert ours.operation.document.isascii()
    assert ours.operation.document.isprintable()


def answers(selected: graphql.SelectionSetNode | None) -> dict[str, Any]:
    keys: dict[str, Any] = {}

    def merge(into: dict[str, Any], more: dict[str, Any]) -> None:
        for key, below in more.items():
            merge(into.setdefault(key, {}), below)

    for node in selected.selections if selected else ():
        if isinstance(node, graphql.FieldNode):
            merge(keys, {(node.alias or node.name).value: answers(node.selection_set)})
        elif isinstance(node, graphql.InlineFragmentNode):
            merge(keys, answers(node.selection_set))
    return keys


CUTS: list[Callable[[str, int, str], str]] = [
    lambda text, at, new: text[:at] + text[at + 1 :],
    lambda text, at, new: text[:at] + new + text[at:],
    lambda text, at, new: text[:at] + new + text[at + 1 :],
]


@settings(max_examples=400, deadline=None)
@given(documents(), st.data())
def test_what_graphql_core_refuses_is_refused(text: str, data: st.DataObject) -> None:
    """And nothing but an error of ours comes of it, whatever the text."""
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        text = data.draw(st.sampled_from(CUTS))(text, at, data.draw(st.sampled_from('{}()[]$!:@".#,a0 \n|&=…\0')))
    try:
        read(text)
    except DefinitionError:
        return
    second_opinion(text)
