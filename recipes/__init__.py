"""What we run: recipes, data, studies, benchmarks and the command line that starts them."""
