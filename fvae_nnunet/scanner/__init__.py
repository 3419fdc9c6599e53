"""Simulate a CT from another scan: with less dose or another reconstruction kernel."""
