"""Which fields of an answer a JMESPath expression asks for that are not there."""

from dataclasses import dataclass, field
from typing import Any, Protocol


class Shape(Protocol):
    """What stands at a place of an answer."""

    def field(self, name: str) -> "Shape | None":
        """The shape of a field; None where there is none of that name."""
        ...

    def item(self) -> "Shape":
        """The shape of a list's items; of anything else, itself."""
        ...


@dataclass(frozen=True)
class Anything:
    """A place of which nothing is known."""

    def field(self, name: str) -> "Anything":
        """Whatever is there."""
        return self

    def item(self) -> "Anything":
        """Whatever is there."""
        return self


@dataclass
class Missing:
    """Walks a JMESPath expression along the shape of an answer, and keeps the names that are not there."""

    names: list[str] = field(default_factory=list)

    def walk(self, node: dict[str, Any], shape: Shape) -> Shape:
        """The shape of what the expression finds."""
        children = node["children"]
        match node["type"]:
            case "field":
                found = shape.field(node["value"])
                if found is None:
                    self.names.append(node["value"])
                return found or Anything()
            case "subexpression" | "index_expression" | "pipe":
                for child in children:
                    shape = self.walk(child, shape)
                return shape
            case "projection" | "filter_projection":
                return self.walk(children[1], self.walk(children[0], shape).item())
            case "index":
                return shape.item()
            case "flatten":
                return self.walk(children[0], shape)
            case "identity" | "current":
                return shape
            case "or_expression" | "and_expression":
                return [self.walk(child, shape) for child in children][-1]
            case _:
                for child in children:
                    self.walk(child, shape)
                return Anything()
