package main

import "time"

// options are the flags.
type options struct {
	size     size
	rounds   int
	only     []string // subjects; empty: all
	json     string   // file for the result
	stat     string   // file for the result as benchstat reads it
	database string   // URL of a PostgreSQL; empty: SQLite
	whole    bool     // all subjects
	build    bool     // build the peers that were not built before
	server   string   // the program to measure; empty: this tree's, built as it is released
}

// size is how much is done in a round.
type size struct {
	enroll   int           // enrollments on kept connections
	connect  int           // enrollments, renewals and MQTT connections on new ones
	ocsp     int           // OCSP requests
	sessions int           // live sessions
	cuts     int           // of them revoked
	limit    time.Duration // time for each limit
	rest     time.Duration // for memory to settle
	quiet    time.Duration // for which a process uses no CPU before its CPU time is read
	hostile  int           // connections a second of the attacker
	flood    time.Duration // each phase of the flood
	idle     int           // sessions whose memory is measured
	messages int           // of a stream
	fan      int           // sessions that get one message
	ask      time.Duration // requests and answers, each time
	scale    int           // sessions of subject scale
	commands int           // to some of them
	fill     filling       // the filled database
}

// fullSize makes rounds of about a minute, each figure from at least a second of work.
func fullSize() size {
	return size{
		enroll: 3000, connect: 1500, ocsp: 40_000, sessions: 1000, cuts: 200, limit: time.Second, rest: 8 * time.Second, quiet: idleFor, hostile: 1000, flood: 10 * time.Second,
		idle: 5000, messages: 20_000, fan: 10_000, ask: 10 * time.Second, scale: 20_000, commands: 1000, fill: filling{1_000_000, 1_100_000, 100_000, 10_000_000},
	}
}

// quickSize only shows that everything works; its figures are too coarse to compare.
func quickSize() size {
	return size{
		enroll: 200, connect: 60, ocsp: 1000, sessions: 60, cuts: 10, limit: 50 * time.Millisecond, rest: 200 * time.Millisecond, quiet: idleFor, hostile: 200, flood: 3 * time.Second,
		idle: 60, messages: 2000, fan: 60, ask: 500 * time.Millisecond, scale: 200, commands: 20, fill: filling{20_000, 22_000, 2000, 200_000},
	}
}
