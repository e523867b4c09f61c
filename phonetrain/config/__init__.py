"""All settings of a run: read, checked, overridden, compared, written.

Read run_config.py first, then sections.py and schedule_section.py (the settings with their sentences), stages.py
(settings that change during a run), overrides.py (`key=value`), validation.py (how a value is checked), toml.py
(recipes on disk), changes.py (what differs between two configs).
"""
