"""Settings of the property tests."""

import hypothesis

# A deadline per example fails by chance on a machine that is shared.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")
