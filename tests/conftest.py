"""What holds for every test: hypothesis draws the same examples in every run of the same code.

A failure then belongs to the change that made it. New ground is searched on purpose:
``.venv/bin/pytest tests/property --hypothesis-profile=default``.
"""

from hypothesis import settings

settings.register_profile("same-examples", derandomize=True, print_blob=True)
settings.load_profile("same-examples")
