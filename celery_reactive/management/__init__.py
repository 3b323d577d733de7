"""What people ask and do: read the state of the system. Called by the app's handle, the command line, the dashboard."""
