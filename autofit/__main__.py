"""`python -m autofit`."""

from autofit.cli.main import main

raise SystemExit(main())
