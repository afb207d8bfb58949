"""The commented example file and the reference tables, made from the options' declarations. Pure but for `main`.

`python -m p2pdist.config.reference` writes both into a checkout; a test fails when what is committed differs.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from pathlib import Path

from p2pdist.config.agent import section_types
from p2pdist.config.declare import Option
from p2pdist.config.load import PREFIX, REGISTRIES, options_of, variable_of

EXAMPLE = Path("deploy/agent.example.toml")
PAGE = Path("docs/configuration.md")
START, END = "<!-- options: made by python -m p2pdist.config.reference -->", "<!-- /options -->"

_HEAD = """\
# p2pdist agent: every option, at its default. Take away a # to set one. `p2pdist agent --config FILE` reads it.
# Environment variables win over this file; their names stand beside the options. A relative path starts at this file.
"""


def example() -> str:
    """The example file: each option with what it does, its variable and its default, commented out."""
    lines = [_HEAD]
    for name, section in section_types().items():
        lines += _comment(inspect.getdoc(section) or "")
        if name == REGISTRIES:
            lines += _comment(
                f"{PREFIX}REGISTRIES replaces the list: docker.io,ghcr.io,10.0.0.5:5000=http://10.0.0.5:5000"
            )
        lines.append(f"#[[{name}]]" if name == REGISTRIES else f"[{name}]")
        for key, option in options_of(section).items():
            lines.append("")
            lines += _comment(option.doc)
            lines += _comment(_small_print(name, key, option))
            lines.append(f"#{key} = {option.shown}")
        lines.append("\n")
    return "\n".join(lines).rstrip("\n") + "\n"


def tables() -> str:
    """The reference: one Markdown table for each section."""
    lines = []
    for name, section in section_types().items():
        heading = f"[[{name}]]" if name == REGISTRIES else f"[{name}]"
        lines += [f"### `{heading}`", "", inspect.getdoc(section) or "", ""]
        lines += ["| option | default | what it does | variable |", "|---|---|---|---|"]
        for key, option in options_of(section).items():
            default = option.note or f"`{option.shown}`"
            variable = "" if name == REGISTRIES else f"`{variable_of(name, key)}`"
            doc = f"{option.doc} ({option.kind.name})".replace("|", "\\|")
            lines.append(f"| `{key}` | {default} | {doc} | {variable} |")
        lines.append("")
    return "\n".join(lines)


def page_with_tables(page: str) -> str:
    """`page` with the part between its markers made anew. Raises ValueError if it has no markers."""
    before, _, rest = page.partition(START)
    _, marker, after = rest.partition(END)
    if not marker:
        raise ValueError(f"the page has no {START} ... {END}")
    return f"{before}{START}\n\n{tables()}\n{END}{after}"


def _small_print(section: str, key: str, option: Option) -> str:
    parts = [option.kind.name]
    if option.note:
        parts.append(f"default: {option.note}")
    if section != REGISTRIES:
        parts.append(variable_of(section, key))
    return "(" + "; ".join(parts) + ")"


def _comment(text: str) -> list[str]:
    return [f"# {line}".rstrip() for part in text.split("\n") for line in textwrap.wrap(part, 116) or [""]]


def main() -> None:
    """Write both files into the checkout that is the working directory."""
    EXAMPLE.write_text(example())
    PAGE.write_text(page_with_tables(PAGE.read_text()))
    sys.stdout.write(f"{EXAMPLE}\n{PAGE}\n")


if __name__ == "__main__":
    main()
