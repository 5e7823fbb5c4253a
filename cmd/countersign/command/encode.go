package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
)

// encodeJSON writes v as JSON in which nothing can drive a terminal: what
// package json leaves as it is, such as U+202E, is escaped too.
func encodeJSON(v any, prefix string) ([]byte, error) {
	b, err := json.MarshalIndent(v, prefix, "  ")
	if err != nil {
		return nil, fmt.Errorf("couldn't encode: %w", err)
	}
	return escaped(b), nil
}

// escaped escapes what could drive a terminal in a text of JSON.
func escaped(b []byte) []byte {
	if !bytes.ContainsFunc(b, unsafeRune) {
		return b
	}
	var out bytes.Buffer
	for _, r := range string(b) {
		if !unsafeRune(r) {
			out.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&out, `\u%04x`, unit)
		}
	}
	return out.Bytes()
}

// writeJSONLine writes v as JSON on one line.
func writeJSONLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("couldn't encode: %w", err)
	}
	_, err = w.Write(append(escaped(b), '\n'))
	return err
}

func unsafeRune(r rune) bool { return r >= 0x7f && !unicode.IsPrint(r) }

func writeJSON(w io.Writer, v any) error {
	b, err := encodeJSON(v, "")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// writeYAML goes through JSON so that names and omissions are the same in both.
// It is our own because a device's text has to stay data: the YAML library
// writes control characters as they are.
func writeYAML(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("couldn't encode: %w", err)
	}
	y := yamlWriter{dec: json.NewDecoder(bytes.NewReader(b))}
	y.dec.UseNumber()
	if err := y.value(0, atTop); err != nil {
		return fmt.Errorf("couldn't encode: %w", err)
	}
	_, err = w.Write(y.out.Bytes())
	return err
}

// The places of a value in YAML, which decide how it begins.
type place int

const (
	atTop place = iota
	afterKey
	afterDash
)

type yamlWriter struct {
	dec *json.Decoder
	out bytes.Buffer
}

// value writes the next value of the JSON; its children are indented by indent.
func (y *yamlWriter) value(indent int, at place) error {
	tok, err := y.dec.Token()
	if err != nil {
		return err
	}
	delim, container := tok.(json.Delim)
	if !container || !y.dec.More() {
		if at == afterKey {
			y.out.WriteByte(' ')
		}
		y.out.WriteString(yamlScalar(tok) + "\n")
		if container {
			_, err = y.dec.Token() // the closing one of an empty container
		}
		return err
	}
	if at == afterKey {
		y.out.WriteByte('\n')
	}
	for first := true; y.dec.More(); first = false {
		if !first || at != afterDash {
			y.out.WriteString(strings.Repeat(" ", indent))
		}
		next := afterDash
		if delim == '{' {
			key, err := y.dec.Token()
			if err != nil {
				return err
			}
			y.out.WriteString(yamlScalar(key) + ":")
			next = afterKey
		} else {
			y.out.WriteString("- ")
		}
		if err := y.value(indent+2, next); err != nil {
			return err
		}
	}
	end, err := y.dec.Token()
	if _, ok := end.(json.Delim); err == nil && !ok {
		err = errors.New("malformed JSON")
	}
	return err
}

// plain is text that needs no quotes anywhere in YAML, if it is no word of it.
var plain = regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_./-]*$`)

func yamlScalar(tok json.Token) string {
	switch v := tok.(type) {
	case json.Delim:
		return map[json.Delim]string{'{': "{}", '[': "[]"}[v]
	case string:
		words := []string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
		if plain.MatchString(v) && !slices.Contains(words, strings.ToLower(v)) {
			return v
		}
		return strconv.Quote(v) // a double-quoted scalar knows all of its escapes (YAML 1.2, 5.7)
	case nil:
		return "null"
	}
	return fmt.Sprint(tok)
}
