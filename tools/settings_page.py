"""Writes docs/SETTINGS.md from the sections of the configuration; a test holds the page to them."""

from pathlib import Path

from phonetrain.cli.settings import settings, settings_page

PAGE = Path(__file__).parents[1] / "docs/SETTINGS.md"

if __name__ == "__main__":
    PAGE.write_text(settings_page(settings()), encoding="utf-8")
    print(PAGE)
