// Streams is a gRPC server with few places, and a client that tells how calls through sidecars end for both of them.
//
// Google's interop client looks only at its own end of a call.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

var (
	door   = flag.String("door", "", "host:port of the door; without it this is the server")
	direct = flag.String("direct", "", "host:port of the server, which is asked what it saw")
	try    = flag.String("try", "", "what to try")
	age    = flag.Duration("age", 0, "how long the server keeps a connection")
)

var trials = map[string]func(via, server testgrpc.TestServiceClient){
	"cancel":   cancel,
	"deadline": deadline,
	"refuse":   refuse,
	"after":    after,
	"crowd":    crowd,
	"seats":    seats,
	"large":    large,
	"quiet":    quiet,
	"aging":    aging,
}

func main() {
	flag.Parse()
	if *door == "" {
		serve()
	}
	trial := trials[*try]
	if trial == nil {
		log.Fatalf("there is no %q", *try)
	}
	trial(dial(*door), dial(*direct))
}

func dial(address string) testgrpc.TestServiceClient {
	connection, err := grpc.NewClient(
		"passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
	)
	check(err)
	return testgrpc.NewTestServiceClient(connection)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func expect(truth bool, format string, values ...any) {
	if !truth {
		log.Fatalf(format, values...)
	}
}

func to(do string, pairs ...string) (context.Context, context.CancelFunc) {
	ctx := metadata.AppendToOutgoingContext(context.Background(), append(pairs, "x-do", do)...)
	return context.WithTimeout(ctx, 60*time.Second)
}

// noted waits until the server's note of a call has this in it.
func noted(server testgrpc.TestServiceClient, id, wanted string) string {
	text := ""
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		ctx, done := to("report", "x-of", id)
		answer, err := server.UnaryCall(ctx, &testpb.SimpleRequest{})
		done()
		check(err)
		if text = answer.Username; strings.Contains(text, wanted) {
			return text
		}
	}
	log.Fatalf("the server noted %q of %s, not %q", text, id, wanted)
	return ""
}

// A caller that cancels, before or in the middle of an answer, is heard by the server.
func cancel(via, server testgrpc.TestServiceClient) {
	ctx, stop := to("endless", "x-id", "stream")
	stream, err := via.FullDuplexCall(ctx)
	check(err)
	for range 3 {
		_, err = stream.Recv()
		check(err)
	}
	stop()
	noted(server, "stream", "context canceled")
	ctx, stop = to("hang", "x-id", "unary")
	over := make(chan error)
	go func() {
		_, err := via.UnaryCall(ctx, &testpb.SimpleRequest{})
		over <- err
	}()
	noted(server, "unary", "left")
	stop()
	noted(server, "unary", "context canceled")
	expect(status.Code(<-over) == codes.Canceled, "it was not cancelled")
}

// The server knows the caller's deadline, and the caller gets its code when it passes.
func deadline(via, server testgrpc.TestServiceClient) {
	ctx, stop := to("hang", "x-id", "deadline")
	defer stop()
	short, done := context.WithTimeout(ctx, 700*time.Millisecond)
	defer done()
	_, err := via.UnaryCall(short, &testpb.SimpleRequest{})
	expect(status.Code(err) == codes.DeadlineExceeded, "it ended with %v", err)
	text := noted(server, "deadline", " then ")
	words := strings.Fields(text)
	left, err := time.ParseDuration(words[1])
	check(err)
	expect(left > 300*time.Millisecond && left <= 700*time.Millisecond, "the server was told %v", left)
}

// An answer that ends before its request: status, message and trailers arrive, and the caller's sends come to an end.
func refuse(via, _ testgrpc.TestServiceClient) {
	ctx, stop := to("refuse")
	defer stop()
	stream, err := via.FullDuplexCall(ctx)
	check(err)
	body := make([]byte, 100_000)
	for {
		err = stream.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: body}})
		if err != nil {
			break
		}
	}
	expect(err == io.EOF, "sending ended with %v", err)
	_, err = stream.Recv()
	expect(status.Code(err) == codes.InvalidArgument, "it ended with %v", err)
	expect(status.Convert(err).Message() == "enough, and ünïcode", "it ended with %v", err)
	why := stream.Trailer().Get("x-why-bin")
	expect(len(why) == 1 && why[0] == "\x00\x01\xff", "the trailers have %q", why)
}

// A caller that has ended its side hears everything that follows.
func after(via, _ testgrpc.TestServiceClient) {
	ctx, stop := to("after")
	defer stop()
	stream, err := via.FullDuplexCall(ctx)
	check(err)
	check(stream.Send(&testpb.StreamingOutputCallRequest{}))
	check(stream.CloseSend())
	for range 100 {
		_, err = stream.Recv()
		check(err)
	}
	_, err = stream.Recv()
	expect(err == io.EOF, "it ended with %v", err)
}

// Far more calls at a time than the server's connection has places: each is answered.
func crowd(via, _ testgrpc.TestServiceClient) {
	var group sync.WaitGroup
	for range 300 {
		group.Add(1)
		go func() {
			defer group.Done()
			ctx, stop := to("slow")
			defer stop()
			_, err := via.UnaryCall(ctx, &testpb.SimpleRequest{ResponseSize: 100})
			check(err)
		}()
	}
	group.Wait()
}

// More streams that stay than the server's connection has places: each begins.
func seats(via, _ testgrpc.TestServiceClient) {
	ctx, stop := to("endless")
	defer stop()
	for at := range 35 {
		stream, err := via.FullDuplexCall(ctx)
		check(err)
		begun := time.AfterFunc(10*time.Second, func() { log.Fatalf("stream %d does not begin", at) })
		_, err = stream.Recv()
		check(err)
		begun.Stop()
	}
}

// Messages far above every window, both ways, read slowly.
func large(via, _ testgrpc.TestServiceClient) {
	ctx, stop := to("echo")
	defer stop()
	stream, err := via.FullDuplexCall(ctx)
	check(err)
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	go func() {
		for range 4 {
			check(stream.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: body}}))
		}
		check(stream.CloseSend())
	}()
	for range 4 {
		time.Sleep(200 * time.Millisecond)
		in, err := stream.Recv()
		check(err)
		expect(bytes.Equal(in.Payload.Body, body), "it is not what was sent")
	}
	_, err = stream.Recv()
	expect(err == io.EOF, "it ended with %v", err)
}

// A stream that is silent for longer than any server of gRPC bears pings without taking offence.
func quiet(via, _ testgrpc.TestServiceClient) {
	ctx, stop := to("quiet", "x-wait", "50s")
	defer stop()
	stream, err := via.FullDuplexCall(ctx)
	check(err)
	begun := time.Now()
	head, err := stream.Header()
	check(err)
	expect(len(head.Get("x-early")) == 1, "the head has %v", head)
	expect(time.Since(begun) < 5*time.Second, "the head waited for a message")
	_, err = stream.Recv()
	check(err)
	_, err = stream.Recv()
	expect(err == io.EOF, "it ended with %v", err)
}

// Calls one after the other, on connections that the server ends again and again: none is lost.
func aging(via, _ testgrpc.TestServiceClient) {
	count := 0
	var group sync.WaitGroup
	var mutex sync.Mutex
	for range 4 {
		group.Add(1)
		go func() {
			defer group.Done()
			for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
				ctx, stop := to("")
				_, err := via.UnaryCall(ctx, &testpb.SimpleRequest{ResponseSize: 100})
				stop()
				check(err)
				mutex.Lock()
				count++
				mutex.Unlock()
			}
		}()
	}
	group.Wait()
	fmt.Println(count, "calls")
}
