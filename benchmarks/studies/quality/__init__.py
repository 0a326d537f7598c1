"""Sample quality of a potential beside that of flow matching: python -m benchmarks.studies.quality"""
