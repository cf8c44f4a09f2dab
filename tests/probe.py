"""A connector with an argument in every place of a request, and its key in a header of its own."""

PROBE = """
id: probe
title: Probe
base_url: https://probe.example
headers: {X-Fixed: probe}
credentials:
  key: {label: key, help: Any., scheme: header, name: X-Api-Key}
verify:
  call: GET /me
tools:
  one:
    title: One segment
    description: One segment.
    call: GET /things/{thing}/parts
    effect: read
    arguments:
      thing: {type: string, description: Which.}
  many:
    title: Many segments
    description: Many segments.
    call: GET /files/{path}
    effect: read
    arguments:
      path: {type: string, slashes: true, description: Where.}
  query:
    title: A query
    description: A query.
    call: GET /search
    effect: read
    arguments:
      words: {type: string, description: Words.}
      tags: {type: array, items: {type: string}, list: comma, description: Tags.}
  header:
    title: A header
    description: A header.
    call: GET /headed
    effect: read
    arguments:
      mark: {type: string, in: header, as: X-Mark, description: Mark.}
"""
