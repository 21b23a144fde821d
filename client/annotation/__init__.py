"""Predictions as files of annotation tools."""
