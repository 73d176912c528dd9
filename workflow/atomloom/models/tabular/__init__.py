"""Tabular models: functions of global features alone, given by arrays that a fit has made."""
