"""The pages that people read and branch on: templates, their JSON, scripts and styles.

Owns what a browser shows. It does not know how answers are computed.
"""
