"""The templates of the pages: text is escaped, and no mark in a text turns the direction of what follows it."""

from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template

from storage.errors import printable


def template(name: str) -> Template:
    """Return a template of this package by its file's name."""
    environment = Environment(
        loader=FunctionLoader(packaged),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def packaged(name: str) -> str:
    """Return the text of a template or script of this package."""
    return files("petscale.reporting").joinpath(name).read_text("utf-8")


def _shown(value: object) -> object:
    """A text's control characters escaped; markup (a kind of str too) and numbers as they are."""
    return printable(value, keep="\n") if type(value) is str else value
