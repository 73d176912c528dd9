"""What a training minimises: the trainer asks an objective and knows neither targets nor losses."""
