// Relay dials a door by mutual TLS with ALPN h2 and copies bytes: for a client that has no certificate to show.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
)

func main() {
	target := flag.String("target", "", "host:port of the door")
	name := flag.String("name", "", "what the door's certificate must say")
	cert := flag.String("cert", "", "our certificate, PEM")
	key := flag.String("key", "", "its key, PEM")
	ca := flag.String("ca", "", "who signs the door's certificate, PEM")
	flag.Parse()
	pair, err := tls.LoadX509KeyPair(*cert, *key)
	check(err)
	pem, err := os.ReadFile(*ca)
	check(err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		log.Fatal("the CA's file has no certificate")
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{pair},
		RootCAs:      roots,
		ServerName:   *name,
		NextProtos:   []string{"h2"},
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr())
	for {
		near, err := listener.Accept()
		check(err)
		go join(near.(*net.TCPConn), *target, config)
	}
}

// join copies both ways; the end of one way is told to the other side, as the client would see it without us.
func join(near *net.TCPConn, target string, config *tls.Config) {
	defer near.Close()
	far, err := tls.Dial("tcp", target, config)
	if err != nil {
		log.Print(err)
		return
	}
	defer far.Close()
	if agreed := far.ConnectionState().NegotiatedProtocol; agreed != "h2" {
		log.Printf("the door agreed on %q", agreed)
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// And here a door that ends the connection with bytes of ours unread.
		io.Copy(near, far)
		near.CloseWrite()
	}()
	// An error here is a client that went away with a reset, as h2spec does after each case.
	io.Copy(far, near)
	far.CloseWrite()
	<-done
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
