"""Objectives of training: the trainer asks an objective and knows neither targets nor losses."""
