"""`phonetrain recipes list | show | copy`."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from ..display.tables import print_result
from .options import Json, Overrides, Recipe

ABOUT = """Start with default. The experiments and "the log": one student's notes on this homework (CMU 11-785, HW1P2,
spring 2025, a T4), each experiment of them as a recipe; the accuracies are that student's, on the course's data.
`phonetrain recipes show NAME` prints one with its layers, `phonetrain fit NAME` trains it."""

recipes = App(name="recipes", help="Recipes: whole experiments as TOML files.")


@recipes.command(name="list")
def list_recipes(*, json: Json = False) -> None:
    """The recipes that come with phonetrain, a line each."""
    from ..config.toml import recipe_names, summary

    summaries = {name: summary(name) for name in recipe_names()}
    width = max(map(len, summaries))
    lines = [f"{name:<{width}}  {text}" for name, text in summaries.items()]
    print_result(summaries, "\n".join([*lines, "", ABOUT]), json)


@recipes.command(name="show")
def show_recipe(name: Recipe, /, *, corpus: Path | None = None, json: Json = False, overrides: Overrides = ()) -> None:
    """A recipe's settings and its layers, with parameters and FLOPs a frame; takes key=value settings too.

    Parameters
    ----------
    corpus
        Take coefficients and phonemes from this packed corpus; default: packed/ if there, else 28 and 40.
    """
    from ..planning.dry_run import show, show_text

    result = show(name, *overrides, corpus=corpus)
    print_result(result, show_text(result), json)


@recipes.command(name="copy")
def copy_recipe(name: str, out: Path | None = None, /, *, json: Json = False) -> None:
    """Copy a recipe to a file of your own, to change and to train: `phonetrain fit NAME.toml`.

    Parameters
    ----------
    name
        A name from `phonetrain recipes list`.
    out
        The new file; default NAME.toml here.
    """
    from ..config.toml import locate, read_text
    from ..errors import ConfigError

    path = out or Path(f"{Path(name).stem}.toml")
    text = read_text(locate(name))
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path}: is there already; give another name: phonetrain recipes copy {name} FILE") from None
    except OSError as error:
        raise ConfigError(f"{path}: could not be written ({error.strerror})") from None
    print_result({"recipe": str(path)}, str(path), json)
