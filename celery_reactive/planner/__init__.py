"""The planner: watches changes, keeps the records, dispatches what is due. Start with `process`."""
