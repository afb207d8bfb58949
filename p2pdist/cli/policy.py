"""`p2pdist policy check`: whether a policy file can be used, what it says, and which rule an image falls under."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from p2pdist.cli.lines import Line, show
from p2pdist.oci import Reference
from p2pdist.trust import Policy, ScopeExplanation, explain_policy, explain_scope, load_policy
from p2pdist.trust.policy import namespaces

policy = typer.Typer(no_args_is_help=True, help="Work on signature policies (docs/policy.md).")


@policy.callback()
def _commands() -> None:
    """With a callback typer keeps `check` a command of its own, although it is the only one."""


@dataclass(frozen=True, slots=True)
class Applied:
    """Which scope an image falls under. `considered`: the scopes that could, most specific first, up to that one."""

    reference: str
    considered: tuple[str, ...]
    scope: ScopeExplanation


@policy.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The policy file.")],
    reference: Annotated[
        str | None, typer.Argument(metavar="REF", help="An image: say which rule would apply to it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Read a policy as an agent would, with every key it names, and say what it requires. Asks no registry.

    Exit status: 0 the policy can be used, 2 it can't, and where it is wrong.
    """
    image = None if reference is None else Reference.parse(reference)
    loaded = load_policy(file)
    scopes = explain_policy(loaded.policy)
    applied = None if image is None else apply(loaded.policy, image)
    if as_json:
        answer = {"file": str(file), "generation": loaded.generation, "scopes": [asdict(scope) for scope in scopes]}
        typer.echo(json.dumps(answer | ({} if applied is None else {"applies": asdict(applied)})))
    elif applied is None:
        show(list(_listed(file, loaded.generation, scopes)))
    else:
        show(list(_applied(applied)))


def apply(policy_: Policy, image: Reference) -> Applied:
    """The scope that applies to a pull of `image`."""
    separator = "@" if image.digest is not None else ":"
    scope = explain_scope(policy_, image.repository, image.target)
    names = [
        f"{image.repository}{separator}{image.target}",
        *(name or "docker" for name in namespaces(image.repository)),
    ]
    names.append("default")
    return Applied(str(image), tuple(names[: names.index(scope.scope) + 1]), scope)


def _listed(file: Path, generation: str, scopes: tuple[ScopeExplanation, ...]) -> Iterator[Line]:
    yield Line(f"{file}, generation {generation[:12]}", "can be used", "bold green")
    for scope in scopes:
        yield from _scope(scope, 2)
    yield Line("Of these the most specific one applies to an image, alone. With REF: which one.")


def _applied(applied: Applied) -> Iterator[Line]:
    yield Line(f"falls under the scope {applied.scope.scope}", applied.reference, "bold")
    for name in applied.considered[:-1]:
        yield Line(name, "no rule for", "dim", 2)
    yield from _scope(applied.scope, 2)


def _scope(scope: ScopeExplanation, indent: int) -> Iterator[Line]:
    if scope.accepts_anything:
        yield Line("anything passes, unsigned too", scope.scope, "bold yellow", indent)
    elif scope.requirements == ("reject",):
        yield Line("nothing passes", scope.scope, "bold", indent)
    else:
        yield Line("requires all of:", scope.scope, "bold", indent)
        for requirement in scope.requirements:
            yield Line(requirement, indent=indent + 2)
        if scope.forms:
            yield Line(", ".join(scope.forms), "signatures looked for", "dim", indent + 2)
