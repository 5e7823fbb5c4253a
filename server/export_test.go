package server

import "github.com/countersign-iot/countersign/store"

// TurnedAway is how a flood gets into the log.
var TurnedAway = turnedAway

// FindingRules is the catalog that responses rest on.
var FindingRules = rulesOfFindings

// Database is the server's own.
func (s *Server) Database() *store.DB { return s.db }
