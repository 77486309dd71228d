"""AudioSep's encoder, and any other of `common.encoder`, in the suites that the field uses: a page each."""

import common  # noqa: F401  # says what is missing, before any other import fails
