"""The worker's side: claim, call the handler, finalize. Read `execute` first."""
