"""Every MongoDB statement of the package. Nothing here decides whether a transition should happen."""
