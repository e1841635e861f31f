package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// server does what a call's `x-do` says, and remembers how the call ended for it.
type server struct {
	testgrpc.UnimplementedTestServiceServer
	mutex sync.Mutex
	notes map[string]string
}

// serve never returns. Limits are small, so that a test meets them.
func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr())
	options := []grpc.ServerOption{
		grpc.MaxConcurrentStreams(10),
		grpc.MaxRecvMsgSize(64 << 20),
	}
	if *age > 0 {
		options = append(options, grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge:      *age,
			MaxConnectionAgeGrace: 5 * time.Second,
		}))
	}
	s := grpc.NewServer(options...)
	testgrpc.RegisterTestServiceServer(s, &server{notes: map[string]string{}})
	check(s.Serve(listener))
}

func said(ctx context.Context, name string) string {
	if values := metadata.ValueFromIncomingContext(ctx, name); len(values) > 0 {
		return values[0]
	}
	return ""
}

func (s *server) note(ctx context.Context, text string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.notes[said(ctx, "x-id")] = text
}

// UnaryCall answers as large as it is asked to; `report` answers what was noted of another call.
func (s *server) UnaryCall(ctx context.Context, in *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	switch said(ctx, "x-do") {
	case "report":
		s.mutex.Lock()
		defer s.mutex.Unlock()
		return &testpb.SimpleResponse{Username: s.notes[said(ctx, "x-of")]}, nil
	case "hang":
		left := "none"
		if deadline, there := ctx.Deadline(); there {
			left = time.Until(deadline).String()
		}
		s.note(ctx, "left "+left)
		<-ctx.Done()
		s.note(ctx, "left "+left+" then "+ctx.Err().Error())
		return nil, ctx.Err()
	case "slow":
		time.Sleep(100 * time.Millisecond)
	}
	body := make([]byte, in.ResponseSize)
	return &testpb.SimpleResponse{Payload: &testpb.Payload{Body: body}}, nil
}

// FullDuplexCall is every kind of stream.
func (s *server) FullDuplexCall(stream testgrpc.TestService_FullDuplexCallServer) error {
	ctx := stream.Context()
	answer := &testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: []byte("x")}}
	switch said(ctx, "x-do") {
	case "quiet":
		// A head at once, then nothing for long.
		check(stream.SendHeader(metadata.Pairs("x-early", "yes")))
		wait, err := time.ParseDuration(said(ctx, "x-wait"))
		check(err)
		select {
		case <-time.After(wait):
			return stream.Send(answer)
		case <-ctx.Done():
			return ctx.Err()
		}
	case "refuse":
		// Ends while the caller is still sending.
		if _, err := stream.Recv(); err != nil {
			return err
		}
		stream.SetTrailer(metadata.Pairs("x-why-bin", "\x00\x01\xff"))
		return status.Error(codes.InvalidArgument, "enough, and ünïcode")
	case "after":
		// Goes on long after the caller has ended its side.
		for {
			if _, err := stream.Recv(); err == io.EOF {
				break
			} else if err != nil {
				return err
			}
		}
		for range 100 {
			if err := stream.Send(answer); err != nil {
				return err
			}
		}
		return nil
	case "endless":
		s.note(ctx, "open")
		for {
			if err := stream.Send(answer); err != nil {
				break
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
			if ctx.Err() != nil {
				break
			}
		}
		<-ctx.Done()
		s.note(ctx, ctx.Err().Error())
		return ctx.Err()
	}
	for {
		in, err := stream.Recv()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		out := &testpb.StreamingOutputCallResponse{Payload: in.Payload}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}
