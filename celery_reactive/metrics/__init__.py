"""Prometheus: what is counted where it happens, what is measured when somebody asks, and who answers (B-55)."""
