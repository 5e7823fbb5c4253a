package server

// TurnedAway is how a flood gets into the log.
var TurnedAway = turnedAway
