LEAST = {}
