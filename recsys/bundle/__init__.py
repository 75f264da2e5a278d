"""The artefact: one folder that scores raw rows with torch alone, proved before it is written."""
