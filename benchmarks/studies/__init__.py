"""Studies, one file or package each: questions answered once, with their results in benchmarks/results/ and a page."""
