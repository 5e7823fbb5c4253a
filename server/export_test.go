package server

// TurnedAway is how a flood gets into the log.
var TurnedAway = turnedAway

// FindingRules is the catalog that responses rest on.
var FindingRules = findingRules
