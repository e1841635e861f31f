//go:build tools

// Package tools keeps the programs that tests/wire runs in go.mod: nothing else imports them.
package tools

import (
	_ "github.com/summerwind/h2spec/cmd/h2spec"
	_ "google.golang.org/grpc/interop/client"
	_ "google.golang.org/grpc/interop/server"
)
