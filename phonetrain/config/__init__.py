"""All settings of a run: read, checked, overridden, compared, written.

Read resolve.py first (the config of a run), then run_config.py, sections.py and schedule_section.py (the settings with
their sentences), stages.py (settings that change during a run), overrides.py (`key=value`), validation.py (how a value
is checked), toml.py (recipes on disk), changes.py (what differs between two configs).
"""
