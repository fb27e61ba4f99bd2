"""The collections of a Hugging Face Hub on loopback: made, listed, added to, by what huggingface_hub asks."""

import json
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from hub_server import Reply, as_json

SHOWN = 4  # members that a list of collections tells of each


@dataclass
class Collection:
    """What one holds: (type, id) of each member, in the order they were added."""

    title: str
    private: bool
    items: list[tuple[str, str]] = field(default_factory=list)

    def told(self, slug: str, shown: int | None = None) -> dict[str, object]:
        """As the Hub tells it."""
        items = [
            {"_id": str(at), "id": name, "type": kind, "position": at} for at, (kind, name) in enumerate(self.items)
        ]
        return {
            "slug": slug, "title": self.title, "private": self.private, "items": items[:shown], "theme": "blue",
            "upvotes": 0, "lastUpdated": "2026-01-01T00:00:00.000Z", "owner": {"name": slug.partition("/")[0]},
        }  # fmt: skip


class Collections:
    """Collections by slug."""

    def __init__(self) -> None:
        self.all: dict[str, Collection] = {}

    def answer(self, request: tuple[str, list[str], str], asked: bytes, known: bool) -> Reply:
        """One request: its method, its path after `collections`, and its query; private ones are shown to a writer."""
        method, path, query = request
        if method == "GET":
            return self._read(path, query, known)
        return self._write(method, path, json.loads(asked)) if known else as_json({"error": "Invalid username"}, 401)

    def _read(self, path: list[str], query: str, known: bool) -> Reply:
        seen, slug = {name: one for name, one in self.all.items() if known or not one.private}, "/".join(path)
        if not path:
            owner = parse_qs(query)["owner"][0]
            return as_json([one.told(name, SHOWN) for name, one in seen.items() if name.startswith(f"{owner}/")])
        return as_json({**seen[slug].told(slug), "position": 0} if slug in seen else {}, 200 if slug in seen else 404)

    def _write(self, method: str, path: list[str], body: dict) -> Reply:
        if not path:
            return self._create(body)
        slug = "/".join(path[:2])
        found = self.all[slug]
        if method == "PATCH":
            found.private = body["private"]
            return as_json({"data": {**found.told(slug), "position": 0}})
        item = (body["item"]["type"], body["item"]["id"])
        if item in found.items:
            return as_json({"error": "Item already in collection"}, 409)
        found.items.append(item)
        return as_json({**found.told(slug), "position": 0})

    def _create(self, body: dict) -> Reply:
        slug = f"{body['namespace']}/{body['title'].lower().replace(' ', '-')}-{len(self.all):024x}"
        same = [
            n for n, one in self.all.items() if n.startswith(f"{body['namespace']}/") and one.title == body["title"]
        ]
        if same:
            return as_json({"error": "You already created this collection", "slug": same[0]}, 409)
        self.all[slug] = Collection(body["title"], body["private"])
        return as_json({**self.all[slug].told(slug), "position": 0})
