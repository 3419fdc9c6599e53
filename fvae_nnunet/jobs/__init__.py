"""Processing of many cases: processes, devices, locks, and records of finished cases."""
